"""The helper at the client: profiles, and tunnels through the gateway. Imports on Windows and macOS too."""
