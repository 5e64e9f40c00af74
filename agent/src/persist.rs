//! Files that survive a crash at any instruction.
//!
//! A file appears under its name complete and on disk, or not at all: it is written under a
//! temporary name in the same directory, synced, renamed, and the directory is synced. Temporary
//! files that a crash left behind are removed when the directory is opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What temporary names begin with. No file of ours begins so otherwise.
pub const TEMPORARY: &str = ".tmp-";

/// Makes the directory (mode 0700 for new ones) and removes unfinished files in it.
///
/// # Errors
///
/// When the directory cannot be made, read or cleaned.
pub fn open_dir(dir: &Path) -> io::Result<()> {
    make_dir(dir)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes a directory and those above it, each on disk in its parent.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    make_dir(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        }),
    }
}

/// Writes or replaces a file with this mode.
///
/// # Errors
///
/// When writing or renaming fails, and the old file, if any, is then still there; or when the
/// directory cannot be synced, and then nobody knows which of the two a crash would leave.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    place(path, content, mode)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Writes or replaces several files of a directory: each is whole or not there, at every moment; all
/// are on disk at the end. One sync of the directory instead of one for each file.
///
/// # Errors
///
/// As [`write()`]; some of the files may be there.
pub fn write_many(dir: &Path, files: &[(String, &[u8])], mode: u32) -> io::Result<()> {
    for (name, content) in files {
        place(&dir.join(name), content, mode)?;
    }
    sync_dir(dir)
}

/// Renames files within a directory, and sets their modification time to now. Those that are not
/// there are passed over: an earlier call that failed may have renamed them.
///
/// # Errors
///
/// When renaming or syncing fails; some of the files may have been renamed.
pub fn rename_many(dir: &Path, names: &[(String, String)]) -> io::Result<()> {
    for (from, to) in names {
        let from = dir.join(from);
        let renamed = File::options().write(true).open(&from).and_then(|file| {
            file.set_modified(SystemTime::now())?;
            fs::rename(&from, dir.join(to))
        });
        match renamed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    sync_dir(dir)
}

/// Writes or replaces a file; its name is not synced.
fn place(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_name(path)?;
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
        fs::rename(&temporary, path)
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

/// The names of the complete files of a directory, sorted, unfinished ones left out.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(TEMPORARY) && entry.file_type()?.is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The complete files of a directory: name and content, unfinished ones left out.
///
/// # Errors
///
/// When the directory or a file cannot be read.
pub fn read_all(dir: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    names(dir)?
        .into_iter()
        .map(|name| {
            let content = fs::read(dir.join(&name))?;
            Ok((name, content))
        })
        .collect()
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a file path");
    let dir = path.parent().ok_or_else(invalid)?;
    let name = path.file_name().ok_or_else(invalid)?;
    // The end matters as well: a container runtime takes what ends in `.conflist` for one.
    Ok(dir.join(format!("{TEMPORARY}{}~", name.to_string_lossy())))
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
    fn directories_are_roots_alone_and_renames_can_be_repeated() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("tempdir");
        let deep = dir.path().join("a/b");
        open_dir(&deep).expect("makes");
        let mode = fs::metadata(&deep).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let files = [("x".to_owned(), &b"1"[..]), ("y".to_owned(), b"2")];
        write_many(&deep, &files, 0o600).expect("writes");
        let renames = [
            ("x".to_owned(), "free-x".to_owned()),
            ("y".to_owned(), "free-y".to_owned()),
        ];
        for _ in 0..2 {
            rename_many(&deep, &renames).expect("renames");
            assert_eq!(names(&deep).expect("lists"), ["free-x", "free-y"]);
        }
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
