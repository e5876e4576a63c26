//! Image archives without a container engine: a layer for users and folders, a layer for the program.
//!
//! The archive is in the format of `docker save`, which every runtime's import reads. Times, owners and order are fixed,
//! so that the same program gives the same bytes.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// What goes into an image.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// The program, statically linked; its file name is the image's
    #[arg(long)]
    program: PathBuf,
    /// Tag of the image
    #[arg(long, default_value = "dev")]
    tag: String,
    /// User and group that the program runs as, numbers
    #[arg(long, default_value = "65532:65532")]
    user: String,
    /// Archive to write
    #[arg(long)]
    output: PathBuf,
    /// Most bytes that the archive may have
    #[arg(long)]
    limit: Option<u64>,
}

/// Writes the archive and prints its size and digest.
///
/// # Errors
/// When the program is not a static executable, or the archive is larger than its limit.
pub(crate) fn write(args: &ImageArgs) -> Result<()> {
    let program = std::fs::read(&args.program).with_context(|| format!("read {}", args.program.display()))?;
    let name = args
        .program
        .file_name()
        .and_then(|name| name.to_str())
        .context("the program has no file name")?;
    let architecture = static_executable(&program).with_context(|| args.program.display().to_string())?;
    let archive = archive(name, &args.tag, &args.user, architecture, &program)?;
    let digest = hex(&archive);
    if let Some(limit) = args.limit {
        ensure!(
            archive.len() as u64 <= limit,
            "image {name} has {} bytes, more than its limit of {limit}",
            archive.len()
        );
    }
    if let Some(folder) = args.output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    std::fs::write(&args.output, &archive).with_context(|| format!("write {}", args.output.display()))?;
    let mebibytes = archive.len() as f64 / f64::from(1 << 20);
    println!(
        "{} {name}:{} {mebibytes:.1} MiB sha256:{digest}",
        args.output.display(),
        args.tag
    );
    Ok(())
}

fn archive(name: &str, tag: &str, user: &str, architecture: &str, program: &[u8]) -> Result<Vec<u8>> {
    let layers = [users_layer()?, program_layer(name, program)?];
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": [format!("/usr/local/bin/{name}")],
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "User": user,
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.title": name},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [
            {"created": "1970-01-01T00:00:00Z", "created_by": "users and folders"},
            {"created": "1970-01-01T00:00:00Z", "created_by": format!("program {name}")},
        ],
    });
    let config = serde_json::to_vec(&config).context("write the image's configuration")?;
    let config_name = format!("{}.json", hex(&config));
    let layer_names: Vec<String> = layers.iter().map(|layer| format!("{}.tar", hex(layer))).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": [format!("{name}:{tag}")], "Layers": layer_names}]);
    let manifest = serde_json::to_vec(&manifest).context("write the image's manifest")?;
    let mut out = tar::Builder::new(Vec::new());
    file(&mut out, &config_name, 0o444, &config)?;
    for (layer_name, layer) in layer_names.iter().zip(&layers) {
        file(&mut out, layer_name, 0o444, layer)?;
    }
    file(&mut out, "manifest.json", 0o444, &manifest)?;
    out.into_inner().context("end the archive")
}

fn users_layer() -> Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    folder(&mut out, "etc/")?;
    file(&mut out, "etc/group", 0o644, GROUP.as_bytes())?;
    file(&mut out, "etc/passwd", 0o644, PASSWD.as_bytes())?;
    out.into_inner().context("end a layer")
}

fn program_layer(name: &str, program: &[u8]) -> Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    for path in ["usr/", "usr/local/", "usr/local/bin/"] {
        folder(&mut out, path)?;
    }
    file(&mut out, &format!("usr/local/bin/{name}"), 0o755, program)?;
    out.into_inner().context("end a layer")
}

fn folder(out: &mut tar::Builder<Vec<u8>>, path: &str) -> Result<()> {
    let mut header = header(0o755, 0);
    header.set_entry_type(tar::EntryType::Directory);
    out.append_data(&mut header, path, std::io::empty())
        .with_context(|| format!("add {path}"))
}

fn file<W: Write>(out: &mut tar::Builder<W>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(mode, bytes.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    out.append_data(&mut header, path, bytes)
        .with_context(|| format!("add {path}"))
}

/// Root's, from 1970.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

/// The architecture of an ELF executable that needs no loader.
fn static_executable(program: &[u8]) -> Result<&'static str> {
    ensure!(
        program.starts_with(b"\x7fELF\x02\x01"),
        "is no 64-bit little-endian ELF executable"
    );
    let short = |at: usize| {
        program
            .get(at..at + 2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .context("is cut off")
    };
    let long = |at: usize| -> Result<u64> {
        let bytes = program.get(at..at + 8).context("is cut off")?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    };
    let start = usize::try_from(long(32)?).context("is cut off")?;
    let (size, count) = (usize::from(short(54)?), usize::from(short(56)?));
    for number in 0..count {
        let kind = short(start + number * size)?;
        ensure!(
            kind != PT_INTERP,
            "is linked dynamically: build it with -C target-feature=+crt-static and --target"
        );
    }
    Ok(match short(18)? {
        62 => "amd64",
        183 => "arm64",
        other => bail!("is for machine {other} of ELF: 62 (x86-64) and 183 (aarch64) are known"),
    })
}

/// Program header of the dynamic loader's name.
const PT_INTERP: u16 = 3;
const PASSWD: &str = include_str!("../../../config/images/passwd");
const GROUP: &str = include_str!("../../../config/images/group");

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kind: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..66].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn the_same_program_gives_the_same_archive() {
        let one = archive("weft-app", "dev", "65532:65532", "amd64", b"program").expect("builds");
        let two = archive("weft-app", "dev", "65532:65532", "amd64", b"program").expect("builds");
        assert_eq!(one, two);
        let other = archive("weft-app", "dev", "65532:65532", "amd64", b"Program").expect("builds");
        assert_ne!(one, other);
    }

    #[test]
    fn the_archive_holds_what_its_manifest_names() {
        let bytes = archive("weft-proxy", "dev", "1337:1337", "amd64", b"program").expect("builds");
        let mut entries = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().expect("reads") {
            let mut entry = entry.expect("reads");
            assert_eq!(entry.header().mtime().expect("number"), 0);
            let name = entry.path().expect("text").to_string_lossy().into_owned();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).expect("reads");
            entries.insert(name, content);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&entries["manifest.json"]).expect("is JSON");
        assert_eq!(manifest[0]["RepoTags"][0], "weft-proxy:dev");
        let name = manifest[0]["Config"].as_str().expect("text");
        let config: serde_json::Value = serde_json::from_slice(&entries[name]).expect("is JSON");
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/weft-proxy"]));
        assert_eq!(config["config"]["User"], "1337:1337");
        let layers = manifest[0]["Layers"].as_array().expect("list");
        assert_eq!(layers.len(), 2);
        for (layer, diff_id) in layers
            .iter()
            .zip(config["rootfs"]["diff_ids"].as_array().expect("list"))
        {
            let content = &entries[layer.as_str().expect("text")];
            assert_eq!(diff_id, &json!(format!("sha256:{}", hex(content))));
        }
    }

    #[test]
    fn only_static_executables_are_taken() {
        assert_eq!(static_executable(&elf(1)).expect("static"), "amd64");
        assert!(
            static_executable(&elf(PT_INTERP))
                .expect_err("dynamic")
                .to_string()
                .contains("crt-static")
        );
        for bad in [&b"#!/bin/sh"[..], &elf(1)[..40], b""] {
            assert!(static_executable(bad).is_err());
        }
    }
}
