"""Object stores: gs:// and s3:// paths, read, written and staged to local disks.

urls     which paths are remote, and how a store is reached
objects  whole objects, checked by their sha256; create-only and compare-and-swap
lock     one writer: an object that its owner renews
staging  remote files and folders on a local disk, and results on their way back
packed   model folders of zip files and of the Hugging Face Hub
"""
