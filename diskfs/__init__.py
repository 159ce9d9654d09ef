"""diskfs: virtual machine disks as mountable raw devices. Imports nothing, so that every command starts at once."""
