"""The canonical section: how adapters find table, regions, image, scale and crops."""
