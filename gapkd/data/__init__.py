"""Toy faces, folders and zips of images, and pictures on the disk."""
