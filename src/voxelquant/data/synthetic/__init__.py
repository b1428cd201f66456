"""The synthetic LiDAR world: seeded scenes, a spinning LiDAR, nuScenes tables."""
