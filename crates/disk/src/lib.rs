//! Block devices and files behind one trait, with O_DIRECT.
