"""Use of a trained CLIP from Python: texts and images of any form to embeddings."""
