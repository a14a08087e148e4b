"""An encoder or a classifier behind HTTP (extra `serve`): `server.main` starts it."""
