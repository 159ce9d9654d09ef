"""From a disk to an image of another format, and from two disks to whether they are the same."""
