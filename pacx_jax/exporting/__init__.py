"""An encoder in the formats that others read, each opened again before it is kept."""
