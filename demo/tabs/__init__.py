"""Tabs of the app, one module each: layout and events, no models."""
