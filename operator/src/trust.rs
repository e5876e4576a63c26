//! The trust bundle: roots of the authority in force, and the anchors that the mesh config adds (ID-057, ID-144).

use weft_bundle::anchors::{self, Anchor};
use weft_crds::MeshConfig;
use x509_parser::pem::Pem;

/// The bundle as it is written: in the order of its sources, each certificate once, with all that name it.
#[must_use]
pub fn bundle(roots_pem: &str, mesh: &MeshConfig) -> String {
    let mut all: Vec<(Vec<u8>, Anchor)> = Vec::new();
    let roots = anchors::parse(roots_pem)
        .into_iter()
        .map(|root| (root.pem, vec![anchors::MESH.to_owned()]));
    let further = mesh.ca_certificates.iter().flat_map(|entry| {
        let domains = if entry.trust_domains.is_empty() {
            vec![anchors::ANY.to_owned()]
        } else {
            entry.trust_domains.clone()
        };
        let blocks = anchors::parse(entry.pem.as_deref().unwrap_or_default());
        blocks.into_iter().map(move |block| (block.pem, domains.clone()))
    });
    for (pem, domains) in roots.chain(further) {
        let Some(der) = der(&pem) else { continue };
        match all.iter_mut().find(|(known, _)| *known == der) {
            Some((_, anchor)) => anchor.domains.extend(domains),
            None => {
                let domains = domains.into_iter().collect();
                all.push((der, Anchor { domains, pem }));
            }
        }
    }
    let all: Vec<Anchor> = all.into_iter().map(|(_, anchor)| anchor).collect();
    anchors::write(&all)
}

/// What is wrong with the anchors of a mesh config (ID-059).
///
/// # Errors
/// All problems, with their fields.
pub fn check(mesh: &MeshConfig) -> Result<(), String> {
    let mut problems = Vec::new();
    for (n, entry) in mesh.ca_certificates.iter().enumerate() {
        let Some(pem) = &entry.pem else { continue };
        let blocks: Result<Vec<Pem>, _> = Pem::iter_from_buffer(pem.as_bytes()).collect();
        let is_authority = |block: &Pem| block.parse_x509().is_ok_and(|certificate| certificate.is_ca());
        let is_good = |blocks: &Vec<Pem>| {
            !blocks.is_empty() && blocks.len() == anchors::parse(pem).len() && blocks.iter().all(is_authority)
        };
        if !blocks.as_ref().is_ok_and(is_good) {
            problems.push(format!(
                "caCertificates[{n}].pem: must hold certificates of authorities (CA=true) in PEM"
            ));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; "))
    }
}

fn der(pem: &str) -> Option<Vec<u8>> {
    Some(Pem::iter_from_buffer(pem.as_bytes()).next()?.ok()?.contents)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::{Authority, Profile, SpiffeId};

    fn authority() -> Authority {
        Authority::generate("cluster.local", SystemTime::now()).expect("authority")
    }

    fn mesh(entries: &[(&str, &[&str])]) -> MeshConfig {
        let entries: Vec<serde_json::Value> = entries
            .iter()
            .map(|(pem, domains)| serde_json::json!({"pem": pem, "trustDomains": domains}))
            .collect();
        MeshConfig::parse(&serde_json::json!({"caCertificates": entries}).to_string()).expect("a mesh config")
    }

    // spec: ID-057
    #[test]
    fn the_bundle_is_the_roots_and_what_the_mesh_config_adds_each_once_and_in_order() {
        let (own, federated, legacy) = (authority(), authority(), authority());
        let [own, federated, legacy] = [&own, &federated, &legacy].map(|a| a.roots_pem().to_owned());
        assert_eq!(bundle(&own, &MeshConfig::default()), own);
        let both = format!("{legacy}{federated}");
        let mesh = mesh(&[
            (&federated, &["partner.example"]),
            (&both, &[]),
            (&own, &["own.example"]),
        ]);
        assert_eq!(check(&mesh), Ok(()));
        let text = bundle(&own, &mesh);
        let expected = [
            (&own, vec!["@mesh", "own.example"]),
            (&federated, vec!["*", "partner.example"]),
            (&legacy, vec!["*"]),
        ];
        let found = anchors::parse(&text);
        let found: Vec<(&String, Vec<&str>)> = found
            .iter()
            .map(|anchor| (&anchor.pem, anchor.domains.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn anchors_that_are_none_are_refused() {
        let now = SystemTime::now();
        let authority = authority();
        let id = SpiffeId {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
        };
        let leaf = authority.issue(&id, &Profile::default(), now).expect("leaf").chain_pem;
        let root = authority.roots_pem();
        for pem in ["", "no PEM", leaf.as_str(), root.trim_end().trim_end_matches('-')] {
            let problem = check(&mesh(&[(root, &[]), (pem, &[])])).expect_err(pem);
            assert!(problem.starts_with("caCertificates[1].pem: "), "{problem}");
        }
    }
}
