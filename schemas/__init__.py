"""JSON Schemas as package data, for editors and for checks outside Python."""
