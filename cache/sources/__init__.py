"""Sources of images and captions: tables, Parquet, tars, folders, embeddings."""
