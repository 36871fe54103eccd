"""The plugins that come along; each is off unless it has a `[plugins.NAME]` table. See `plugins/README.md`."""
