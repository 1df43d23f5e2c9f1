"""Files: checkpoints, models, metrics, pretrained weights and caches of teacher logits."""
