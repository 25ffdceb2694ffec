//! A compressed archive of files, which is there when it is whole: until then its name ends in
//! `.part`. Only its owner may read it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use crate::failure::{advised, because};

const OWNER_ONLY: u32 = 0o600;

/// An archive that is being written.
pub(super) struct Archive {
    builder: Builder<GzEncoder<File>>,
    path: PathBuf,
    part: PathBuf,
    folder: String,
    at_s: u64,
}

impl Archive {
    /// Begins one whose files are in `folder`, made at this second.
    pub(super) fn create(path: &Path, folder: &str, at_s: u64) -> anyhow::Result<Self> {
        if path.exists() {
            let what = format!("{} is there already", path.display());
            return Err(advised(what, "choose another file with --to"));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(OWNER_ONLY);
        let file = options.open(&part).map_err(|error| {
            let what = format!("{} could not be written", part.display());
            because(error, what, "choose another file with --to")
        })?;
        Ok(Self {
            builder: Builder::new(GzEncoder::new(file, Compression::default())),
            path: path.to_owned(),
            part,
            folder: folder.to_owned(),
            at_s,
        })
    }

    /// Adds a file.
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(OWNER_ONLY);
        header.set_mtime(self.at_s);
        let name = format!("{}/{name}", self.folder);
        self.builder.append_data(&mut header, name, bytes)
    }

    /// All is in it.
    pub(super) fn finish(self) -> io::Result<()> {
        let file = self.builder.into_inner()?.finish()?;
        file.sync_all()?;
        fs::rename(&self.part, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_is_added_is_there_when_it_is_whole() {
        let random: u64 = rand::random();
        let path = std::env::temp_dir().join(format!("carillon-archive-{random:016x}.tar.gz"));
        let mut archive = Archive::create(&path, "chat-report", 1_800_000_000).expect("begun");
        archive.add("logs/chat-0.log", b"one\n").expect("added");
        archive.add("empty", b"").expect("added");
        assert!(!path.exists(), "it is not whole");
        archive.finish().expect("written");
        let file = File::open(&path).expect("it is there");
        let mode = file.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let mut files = Vec::new();
        for entry in read.entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            files.push((name, text));
        }
        let whole = [
            ("chat-report/logs/chat-0.log", "one\n"),
            ("chat-report/empty", ""),
        ];
        assert_eq!(
            files,
            whole.map(|(name, text)| (name.to_owned(), text.to_owned()))
        );
        assert!(
            Archive::create(&path, "chat-report", 0).is_err(),
            "nothing is overwritten"
        );
        fs::remove_file(&path).expect("removed");
    }
}
