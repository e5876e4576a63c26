//! `weft-local.yaml` beside the manifests: programs that stand for images (LOC-011).

use std::path::{Path, PathBuf};

use super::container::Commands;

/// `commands` of `weft-local.yaml` beside the manifests (LOC-011).
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Commands> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct LocalSettings {
        #[serde(default)]
        commands: Commands,
    }
    let mut all = Commands::new();
    for path in paths {
        let dir = if path.is_dir() {
            path.clone()
        } else {
            path.parent().map(Path::to_owned).unwrap_or_default()
        };
        let file = dir.join("weft-local.yaml");
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        let settings: LocalSettings =
            serde_yaml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", file.display(), e.without_snippet()))?;
        all.extend(settings.commands);
    }
    Ok(all)
}
