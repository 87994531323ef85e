"""The whole job on images that it draws itself, with captions in four languages from one grammar."""
