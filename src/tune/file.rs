//! Settings into a `facewise.toml` that people write, too: everything else in it stays as it is.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::Builder;
use toml_edit::{DocumentMut, Item, Key, TomlError, Value};

use crate::config::ConfigError;

/// Tells readers of the file where settings come from that they did not write.
const COMMENT: &str = "# Measured by `facewise tune`.\n";

/// Writes settings into a file, which is made where there is none. Other settings, comments and the order of all stay; the
/// file is replaced as a whole or not at all.
///
/// # Errors
/// When there is a file that cannot be read or is no TOML, or the new one cannot be written.
pub fn write(path: &Path, settings: &[(&str, usize)]) -> Result<(), ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let text = edited(&text, settings)
        .map_err(|error| ConfigError::File { path: path.to_owned(), reason: error.message().to_owned() })?;
    replace(path, &text).map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}

fn edited(text: &str, settings: &[(&str, usize)]) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let mut new = Vec::new();
    for (name, number) in settings {
        let number = Value::from(*number as i64);
        match document.get_mut(name).and_then(Item::as_value_mut) {
            Some(value) => {
                // The spaces and the comment beside it.
                let beside = value.decor().clone();
                *value = number;
                *value.decor_mut() = beside;
            }
            None => new.push((Key::new(*name), number)),
        }
    }
    if let Some((first, _)) = new.first_mut() {
        // New settings come after the comments at the end of the file.
        let mut before = document.trailing().as_str().unwrap_or_default().to_owned();
        if !before.is_empty() && !before.ends_with('\n') {
            before.push('\n');
        }
        if !text.is_empty() && !before.ends_with("\n\n") {
            before.push('\n');
        }
        first.leaf_decor_mut().set_prefix(before + COMMENT);
        document.set_trailing("");
    }
    for (key, number) in new {
        document.insert_formatted(&key, Item::Value(number));
    }
    Ok(document.to_string())
}

/// Through a second file in the same folder, so that no reader finds half of it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Of a link, what it leads to is replaced.
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        found => found?,
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // What the process' mask leaves of it, as for any new file.
    let mut file = Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    match fs::metadata(&path) {
        Ok(old) => file.as_file().set_permissions(old.permissions())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SETTINGS: [(&str, usize); 3] = [("workers", 2), ("intra-threads", 1), ("max-batch", 16)];

    #[track_caller]
    fn becomes(before: &str, after: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facewise.toml");
        fs::write(&path, before).unwrap();
        write(&path, &SETTINGS).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
        write(&path, &SETTINGS).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), after, "a second time changes nothing");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_people_wrote_stays() {
        becomes(
            "# Ours.\n\nmax-batch=8 # of faces\nlisten = '0.0.0.0:80'   # everybody\n\n# As many as it has:\n\
             workers  =  16\nintra-threads = \"1\"\ntasks = [ 'age',\n  'smile' ]\n# end",
            "# Ours.\n\nmax-batch=16 # of faces\nlisten = '0.0.0.0:80'   # everybody\n\n# As many as it has:\n\
             workers  =  2\nintra-threads = 1\ntasks = [ 'age',\n  'smile' ]\n# end",
        );
    }

    #[test]
    fn what_is_new_comes_last() {
        let new = "# Measured by `facewise tune`.\nworkers = 2\nintra-threads = 1\nmax-batch = 16\n";
        becomes("", new);
        becomes("listen = '127.0.0.1:1'", &format!("listen = '127.0.0.1:1'\n\n{new}"));
        becomes("# Nothing yet.", &format!("# Nothing yet.\n\n{new}"));
        becomes(
            "workers = 4\nmax-queue = 9 # few\n\n# end\n",
            "workers = 2\nmax-queue = 9 # few\n\n# end\n\n# Measured by `facewise tune`.\nintra-threads = 1\nmax-batch = 16\n",
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_made_with_the_usual_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let [ours, usual] = ["facewise.toml", "other"].map(|name| folder.path().join(name));
        write(&ours, &SETTINGS).unwrap();
        fs::write(&usual, "").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&usual));
        fs::set_permissions(&ours, Permissions::from_mode(0o640)).unwrap();
        write(&ours, &SETTINGS).unwrap();
        assert_eq!(mode(&ours) & 0o777, 0o640, "those of a file that is there stay");
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let [link, file] = ["facewise.toml", "real.toml"].map(|name| folder.path().join(name));
        fs::write(&file, "workers = 7\n").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, &[("workers", 3)]).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "workers = 3\n");
    }

    #[test]
    fn a_file_that_cannot_be_read_or_written_is_named_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| write(path, &SETTINGS).unwrap_err().to_string();
        let folder_itself = message(folder.path());
        assert!(folder_itself.contains("cannot be read"), "{folder_itself}");
        let nowhere = message(&folder.path().join("no/such.toml"));
        assert!(nowhere.contains("no/such.toml' cannot be written"), "{nowhere}");

        let path = folder.path().join("facewise.toml");
        for (bytes, says) in [(&b"listen = "[..], "facewise.toml' is wrong"), (b"\xff\xfe", "cannot be read")] {
            fs::write(&path, bytes).unwrap();
            let message = message(&path);
            assert!(message.contains(says) && !message.contains('\n'), "{message}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}
