"""What is kept in files: checkpoints, models, metrics, pretrained weights, teachers' logits."""
