"""The monitor's core: windows, views, rules, prices. Pure: bytes and times in, values out; no I/O, no clock."""
