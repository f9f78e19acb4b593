"""Built-in grids, one TOML file each."""
