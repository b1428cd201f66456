"""The nuScenes protocol through the official devkit."""
