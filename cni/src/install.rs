//! The plugin's files on the node: its program, its kubeconfig, and its entry in the runtime's configuration (NET-132).

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde_json::json;

use crate::conflist::{self, ConflistError};
use crate::network::{NAME, Settings};

/// Where the files are, as the agent sees the node's directories.
#[derive(Debug, Clone)]
pub struct Places {
    /// Programs of plugins.
    pub bin_dir: PathBuf,
    /// Network configurations.
    pub conf_dir: PathBuf,
    /// The configuration to be in; `None`: the one that the runtime takes.
    pub conf_name: Option<String>,
}

/// What belongs on the node.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The program: the agent's own.
    pub program: PathBuf,
    /// The plugin's settings.
    pub settings: Settings,
    /// The API server's address.
    pub server: String,
    /// Directory with the token and the CA of the agent's service account.
    pub account: PathBuf,
}

/// Why the plugin is not in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read, written or removed.
    #[error("{what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no network configuration yet.
    #[error("{} holds no network configuration to be chained in; the node's network plugin has to write one", .0.display())]
    NoConfiguration(PathBuf),
    /// The network configuration cannot hold the plugin.
    #[error("{}: {source}", path.display())]
    Conflist {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ConflistError,
    },
}

impl Places {
    /// The plugin's program.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.bin_dir.join(NAME)
    }

    /// The plugin's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.conf_dir.join(KUBECONFIG)
    }

    /// Puts in place what is not: the program first and the entry last, so that the runtime never calls what is not there.
    /// What is as it should be is not touched. True when something was written.
    ///
    /// # Errors
    /// [`InstallError`]: the first thing that could not be done.
    pub fn install(&self, wanted: &Wanted) -> Result<bool, InstallError> {
        let mut changed = self.install_program(&wanted.program)?;
        changed |= write_if_changed(&self.kubeconfig(), &kubeconfig(wanted)?, 0o600)?;
        let name = match &self.conf_name {
            Some(name) => name.clone(),
            None => self.configuration()?,
        };
        changed |= self.edit(&name, Some(&wanted.settings.entry()))?;
        // The runtime may have taken another one before.
        for other in self.names()?.iter().filter(|other| **other != name) {
            changed |= self.edit(other, None).unwrap_or_default();
        }
        Ok(changed)
    }

    /// Takes everything away, the entry first. What is not there is no error.
    ///
    /// # Errors
    /// [`InstallError`]: the first thing that could not be done; the others were.
    pub fn remove(&self) -> Result<(), InstallError> {
        let mut problems = Vec::new();
        match self.names() {
            Ok(names) => problems.extend(names.iter().filter_map(|name| self.edit(name, None).err())),
            Err(problem) => problems.push(problem),
        }
        // Whatever is left of the entry, a program that is gone lets no sandbox begin.
        if problems
            .iter()
            .all(|problem| matches!(problem, InstallError::Conflist { .. }))
        {
            problems.extend(
                [self.kubeconfig(), self.program()]
                    .iter()
                    .filter_map(|path| remove(path).err()),
            );
        }
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    fn install_program(&self, program: &Path) -> Result<bool, InstallError> {
        let target = self.program();
        let bytes = fs::read(program).map_err(file("read", program))?;
        // The mode, too: a program that cannot be run lets no sandbox begin.
        let is_there =
            fs::metadata(&target).is_ok_and(|found| found.len() == bytes.len() as u64 && found.mode() & 0o111 == 0o111);
        if is_there && fs::read(&target).is_ok_and(|found| found == bytes) {
            return Ok(false);
        }
        replace(&target, &bytes, 0o755)?;
        Ok(true)
    }

    fn configuration(&self) -> Result<String, InstallError> {
        let names = self.names()?;
        let first = conflist::first(names.iter().map(String::as_str));
        first
            .map(str::to_owned)
            .ok_or_else(|| InstallError::NoConfiguration(self.conf_dir.clone()))
    }

    fn names(&self) -> Result<Vec<String>, InstallError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.conf_dir).map_err(file("read", &self.conf_dir))? {
            let entry = entry.map_err(file("read", &self.conf_dir))?;
            names.extend(
                entry
                    .file_name()
                    .into_string()
                    .ok()
                    .filter(|name| conflist::is_configuration(name)),
            );
        }
        Ok(names)
    }

    fn edit(&self, name: &str, entry: Option<&serde_json::Value>) -> Result<bool, InstallError> {
        let path = self.conf_dir.join(name);
        let text = match fs::read_to_string(&path) {
            // Somebody else took it away: there is nothing to be taken out of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && entry.is_none() => return Ok(false),
            other => other.map_err(file("read", &path))?,
        };
        let edited = conflist::edit(&text, entry).map_err(|source| InstallError::Conflist {
            path: path.clone(),
            source,
        })?;
        let Some(edited) = edited else { return Ok(false) };
        let mode = fs::metadata(&path).map_or(0o600, |found| found.mode() & 0o777);
        replace(&path, edited.as_bytes(), mode)?;
        Ok(true)
    }
}

/// The plugin's way to the API server, with the token as it is now: a kubelet replaces it before it ends.
fn kubeconfig(wanted: &Wanted) -> Result<Vec<u8>, InstallError> {
    let read = |name: &str| {
        let path = wanted.account.join(name);
        fs::read(&path).map_err(file("read", &path))
    };
    let authority = BASE64.encode(&read("ca.crt")?);
    let token = read("token")?;
    let token = String::from_utf8_lossy(&token);
    // JSON is YAML.
    let object = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": {"server": wanted.server, "certificate-authority-data": authority}}],
        "users": [{"name": NAME, "user": {"token": token.trim()}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
        "current-context": NAME,
    });
    Ok(serde_json::to_vec_pretty(&object).expect("texts always serialize"))
}

fn write_if_changed(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, InstallError> {
    let is_there = fs::metadata(path).is_ok_and(|found| found.mode() & 0o777 == mode);
    if is_there && fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(false);
    }
    replace(path, bytes, mode)?;
    Ok(true)
}

/// Writes a file beside and renames it, so that nobody sees half of it, or one that others can read.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let attempt = || -> io::Result<()> {
        // The name ends in nothing that a runtime would read.
        let mut beside = tempfile::Builder::new()
            .prefix(".weft-cni-")
            .suffix(".tmp")
            .tempfile_in(folder)?;
        beside.write_all(bytes)?;
        beside.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        beside.as_file().sync_all()?;
        beside.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    attempt().map_err(file("write", path))
}

fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { what, path, source }
}

/// Its ending keeps runtimes from reading it as a network configuration.
pub const KUBECONFIG: &str = "weft-cni.kubeconfig";

#[cfg(test)]
mod tests;
