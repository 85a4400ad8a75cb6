//! Writes ustar archives into memory: what an image layer and an image layout are shipped in.
//!
//! Only what images need: directories, files, symbolic links. Owner is root and every time is zero, so that equal
//! contents give equal digests.

const BLOCK: usize = 512;
/// ustar's limit for a name without the prefix field; our names are short.
const NAME_MAX: usize = 100;

/// An archive being written.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub(crate) fn directory(&mut self, name: &str, mode: u32) {
        self.header(name, mode, 0, b'5', "");
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.header(name, mode, contents.len(), b'0', "");
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) {
        self.header(name, 0o777, 0, b'2', target);
    }

    /// The finished archive, with the two zero blocks that end it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn header(&mut self, name: &str, mode: u32, size: usize, kind: u8, target: &str) {
        assert!(name.len() <= NAME_MAX && target.len() <= NAME_MAX, "archive names are short: {name} -> {target}");
        let mut block = [0u8; BLOCK];
        put(&mut block, 0, name.as_bytes());
        put(&mut block, 100, format!("{mode:07o}\0").as_bytes());
        put(&mut block, 108, b"0000000\0");
        put(&mut block, 116, b"0000000\0");
        put(&mut block, 124, format!("{size:011o}\0").as_bytes());
        put(&mut block, 136, b"00000000000\0");
        // The checksum is taken with its own field full of spaces.
        put(&mut block, 148, b"        ");
        block[156] = kind;
        put(&mut block, 157, target.as_bytes());
        put(&mut block, 257, b"ustar\x0000");
        put(&mut block, 265, b"root");
        put(&mut block, 297, b"root");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
    }
}

fn put(block: &mut [u8; BLOCK], at: usize, field: &[u8]) {
    block[at..at + field.len()].copy_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::process::Command;

    #[test]
    fn tar_reads_what_was_written() {
        let mut archive = Archive::default();
        archive.directory("tmp", 0o1777);
        archive.file("bin/tool", 0o755, &[7u8; 1300]);
        archive.symlink("bin/sh", "tool");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a.tar");
        std::fs::write(&path, archive.finish()).expect("written");
        let output =
            Command::new("tar").args(["-xpf"]).arg(&path).arg("-C").arg(dir.path()).output().expect("tar runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read(dir.path().join("bin/sh")).expect("the link resolves"), [7u8; 1300]);
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(dir.path().join("tmp")).expect("made").permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
    }
}
