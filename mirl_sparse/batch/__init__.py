"""Restore all photos of a folder or an object store, on one machine or many; docs/batch.md says how."""
