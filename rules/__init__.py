"""Rule packs as package data: each folder is one pack of YAML files."""
