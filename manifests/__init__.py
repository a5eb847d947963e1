"""Label lists and small manifests, as package data. README.md beside this file says whence."""
