"""Labels of slides from bags of tiles."""
