"""What joins a core to a system: AXI4 to memory, AXI4-Lite registers, an interrupt."""
