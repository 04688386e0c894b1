"""Adapter checkpoints: read, recognise, validate, project, map to the UNet's sites. Pure torch."""
