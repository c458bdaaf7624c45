"""Crops cut from pictures, and crops kept on disk."""
