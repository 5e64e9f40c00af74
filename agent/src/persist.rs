//! Files that survive a crash at any instruction.
//!
//! A file appears under its name complete and on disk, or not at all: it is written under a
//! temporary name in the same directory, synced, renamed, and the directory is synced. Temporary
//! files that a crash left behind are removed when the directory is opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What temporary names begin with. No file of ours begins so otherwise.
const TEMPORARY: &str = ".tmp-";

/// Makes the directory (mode 0700 for new ones) and removes unfinished files in it.
///
/// # Errors
///
/// When the directory cannot be made, read or cleaned.
pub fn open_dir(dir: &Path) -> io::Result<()> {
    let missing = !dir.exists();
    fs::create_dir_all(dir)?;
    if missing {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes or replaces a file with this mode.
///
/// # Errors
///
/// When writing, syncing or renaming fails; the old file, if any, is then still there.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (dir, temporary) = temporary_name(path)?;
    let result = (|| {
        // A crash may have left one behind; its mode could be another.
        remove_if_there(&temporary)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(&dir)
    })();
    if result.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Removes a file; no error when it is not there.
///
/// # Errors
///
/// When removing or syncing fails.
pub fn remove(path: &Path) -> io::Result<()> {
    if remove_if_there(path)? {
        sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    }
    Ok(())
}

/// The complete files of a directory: name and content, unfinished ones left out.
///
/// # Errors
///
/// When the directory or a file cannot be read.
pub fn read_all(dir: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY) || !entry.file_type()?.is_file() {
            continue;
        }
        files.push((name, fs::read(entry.path())?));
    }
    files.sort();
    Ok(files)
}

fn temporary_name(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a file path");
    let dir = path.parent().ok_or_else(invalid)?;
    let name = path.file_name().ok_or_else(invalid)?;
    // The end matters as well: a container runtime takes what ends in `.conflist` for one.
    Ok((
        dir.to_owned(),
        dir.join(format!("{TEMPORARY}{}~", name.to_string_lossy())),
    ))
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_files_are_never_seen() {
        let dir = tempfile::tempdir().expect("tempdir");
        let dir = dir.path().join("state");
        open_dir(&dir).expect("opens");
        write(&dir.join("a"), b"1", 0o600).expect("writes");
        write(&dir.join("a"), b"2", 0o600).expect("replaces");
        // As a crash between write and rename leaves it.
        fs::write(dir.join(".tmp-b"), b"half").expect("writes");
        assert_eq!(
            read_all(&dir).expect("reads"),
            [("a".to_owned(), b"2".to_vec())]
        );
        open_dir(&dir).expect("opens");
        assert!(!dir.join(".tmp-b").exists());
    }

    #[test]
    fn removing_twice_is_fine() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("a");
        write(&file, b"1", 0o600).expect("writes");
        remove(&file).expect("removes");
        remove(&file).expect("is gone");
        assert!(!file.exists());
    }
}
