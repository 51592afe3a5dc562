"""The generators and discriminators, and their building blocks."""
