"""From the equations of a traced function to drafts of layers: recognition by structure, one file per family."""
