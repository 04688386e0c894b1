"""Ours beside the official formulation and plain IP-Adapter; the object relevance score on the miniature."""
