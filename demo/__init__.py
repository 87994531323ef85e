"""The whole job on pictures that it draws itself, with captions in four languages from one grammar."""
