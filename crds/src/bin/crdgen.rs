//! Writes the CustomResourceDefinitions: `crdgen [DIRECTORY]`, `crds/yaml` if none is named.

use std::process::ExitCode;

fn main() -> ExitCode {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| "crds/yaml".into());
    for (name, crd) in weft_crds::schema::definitions() {
        let path = std::path::Path::new(&dir).join(&name);
        let written = weft_crds::schema::to_yaml(&crd)
            .map_err(|e| e.to_string())
            .and_then(|yaml| std::fs::write(&path, yaml).map_err(|e| e.to_string()));
        if let Err(e) = written {
            eprintln!("crdgen: {}: {e}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
