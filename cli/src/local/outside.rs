//! Pods that stand for servers outside of the cluster: at an address of their own choice, under names that no Service
//! gives, and no part of the mesh's world.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;

use super::address::Range;
use super::dns::{Answer, Names};

/// Annotation with the address.
pub const ADDRESS: &str = "local.weft.dev/outside-address";
/// Annotation with the names that stand for it, separated by commas.
pub const NAMES: &str = "local.weft.dev/outside-names";

/// Where such a pod is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// Address.
    pub address: Ipv4Addr,
    /// Names, lower case.
    pub names: Vec<String>,
}

impl Outside {
    /// What the annotations say; `None` for a pod of the cluster.
    ///
    /// # Errors
    /// An address that is none or lies in no range of `--outside-cidr`.
    pub fn of(pod: &Pod, range: Option<Range>) -> anyhow::Result<Option<Self>> {
        let annotations = pod.metadata.annotations.as_ref();
        let value = |name: &str| annotations.and_then(|a| a.get(name));
        let Some(text) = value(ADDRESS) else { return Ok(None) };
        let address: Ipv4Addr = text
            .parse()
            .map_err(|_| anyhow::anyhow!("annotation {ADDRESS} is {text:?}; an IPv4 address is accepted"))?;
        anyhow::ensure!(
            range.is_some_and(|range| range.contains(address)),
            "annotation {ADDRESS} is {address}; name a range that it lies in with --outside-cidr"
        );
        let names = value(NAMES).map(|names| names.split(',').map(|n| n.trim().to_ascii_lowercase()));
        let names = names.into_iter().flatten().filter(|n| !n.is_empty());
        Ok(Some(Self {
            address,
            names: names.collect(),
        }))
    }

    /// Adds its names to the table of the resolver.
    pub fn resolve(&self, names: &mut Names) {
        for name in &self.names {
            names.insert(name.clone(), Answer::Addresses(vec![self.address]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(address: &str) -> Pod {
        let annotations = json!({ADDRESS: address, NAMES: "Ext.example.com, b.example.com"});
        serde_json::from_value(json!({"metadata": {"name": "x", "annotations": annotations}})).expect("pod")
    }

    #[test]
    fn an_outside_pod_needs_an_address_of_the_range() {
        let range: Range = "10.244.0.0/16".parse().expect("range");
        let outside = Outside::of(&pod("10.244.0.1"), Some(range))
            .expect("valid")
            .expect("some");
        assert_eq!(outside.names, ["ext.example.com", "b.example.com"]);
        let mut names = Names::new();
        outside.resolve(&mut names);
        assert_eq!(names["ext.example.com"], Answer::Addresses(vec![outside.address]));
        for (address, range) in [("10.243.0.1", Some(range)), ("10.244.0.1", None), ("x", Some(range))] {
            let problem = Outside::of(&pod(address), range).expect_err("refused").to_string();
            assert!(problem.contains(ADDRESS), "{problem}");
        }
        assert_eq!(Outside::of(&Pod::default(), None).expect("a pod of the cluster"), None);
    }
}
