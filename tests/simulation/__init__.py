"""Days of a fleet's life in seconds, in memory, from a seed: hosts, their VMs, their clocks and network, and billaged.

Everything happens in simulated time, so a seed always gives the same journal. The parts of billaged are
the real ones; what the VMs truly used is known to the simulation only, and judges the bill at the end.
"""
