"""The miniature: a stand-in for SDXL, small enough to ship with the pack and to sample on a CPU."""
