//! Writes a cpio archive in the `newc` format, which the kernel unpacks as its first root.

/// An archive under construction. Directories must be added before what is in them.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, 0o040_755, (0, 0), &[]);
    }

    /// Adds a file that can be executed.
    pub fn program(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, 0o100_755, (0, 0), contents);
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, 0o100_644, (0, 0), contents);
    }

    /// Adds a character device by major and minor number.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, 0o020_600, (major, minor), &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// Names are relative to the root and contents are below 4 GiB, as the format's fields are.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let path = path.trim_start_matches('/');
        // Inode, mode, owner, group, links, time, size, device of the file, device it is, length of
        // the name with its terminator, checksum (unused).
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let (major, minor) = device;
        self.bytes.extend(b"070701");
        for field in [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name,
            0,
        ] {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut archive = Archive::default();
        archive.directory("/dev");
        archive.device("/dev/console", 5, 1);
        archive.file("/list", b"veth\n");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).expect("all of it is text");
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.contains("dev/console\0"));
        assert!(text.contains("veth\n"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
        // The header of the file: its size is the seventh of the fields after the magic.
        let header = text.find("list\0").expect("the entry") - 110;
        assert_eq!(&text[header + 6 + 6 * 8..header + 6 + 7 * 8], "00000005");
    }
}
