//! What a rule does with requests and connections: destinations and mirrors (VS-047..VS-059, VS-136..VS-141).

use weft_bundle::wire::{Action, Destination, HeaderOps, Mirror};
use weft_crds::validate::host;
use weft_crds::virtual_service as api;

use super::Client;
use super::answer::{direct_response, redirect};
use super::change::headers;
use super::resilience::{MILLION, millionths};

impl Client<'_> {
    pub(super) fn action(&self, namespace: &str, route: &api::HTTPRoute, port: u16) -> Action {
        if let Some(redirected) = &route.redirect {
            return Action::Redirect(redirect(redirected));
        }
        if let Some(direct) = &route.direct_response {
            return Action::DirectResponse(direct_response(direct));
        }
        let destination = |d: &api::HTTPRouteDestination| {
            let (request_headers, response_headers) = headers(d.headers.as_ref());
            Destination {
                request_headers,
                response_headers,
                ..self.destination(namespace, &d.destination, d.weight, port)
            }
        };
        Action::Destinations(weighed(route.route.iter().map(destination).collect()))
    }

    /// Destinations of connections.
    pub(super) fn connections(&self, namespace: &str, route: &[api::RouteDestination], port: u16) -> Vec<Destination> {
        let destination = |d: &api::RouteDestination| self.destination(namespace, &d.destination, d.weight, port);
        weighed(route.iter().map(destination).collect())
    }

    pub(super) fn mirrors(&self, namespace: &str, route: &api::HTTPRoute, port: u16) -> Vec<Mirror> {
        let one = |destination: &api::Destination, share_ppm| Mirror {
            destination: Destination {
                weight: 1,
                ..self.destination(namespace, destination, None, port)
            },
            share_ppm,
        };
        let share = |p: Option<api::Percent>| p.map_or(MILLION, |p| millionths(p.value));
        let single = route.mirror.as_ref().map(|m| {
            let deprecated = route
                .mirror_percent
                .and_then(|p| u32::try_from(p).ok())
                .map_or(MILLION, |p| p * 10_000);
            one(m, route.mirror_percentage.map_or(deprecated, |p| millionths(p.value)))
        });
        let several = route
            .mirrors
            .iter()
            .filter_map(|m| m.destination.as_ref().map(|d| one(d, share(m.percentage))));
        single.into_iter().chain(several).filter(|m| m.share_ppm > 0).collect()
    }

    /// A destination with its full host and its port (VS-047, VS-050, VS-052).
    fn destination(
        &self,
        namespace: &str,
        destination: &api::Destination,
        weight: Option<i64>,
        arrival: u16,
    ) -> Destination {
        let host = host::expand(&destination.host, namespace, &self.shared.world.settings.cluster_domain);
        let service = self.shared.services.find(&host, &self.inputs.namespace);
        let named = destination
            .port
            .as_ref()
            .and_then(|p| u16::try_from(p.number).ok())
            .filter(|p| *p > 0);
        let port = named.or_else(|| {
            let ports = &service?.ports;
            match ports.as_slice() {
                [only] => Some(only.number),
                several => several.iter().find(|p| p.number == arrival).map(|p| p.number),
            }
        });
        Destination {
            host: service.map_or(host, |s| s.host.clone()),
            port: port.unwrap_or(0),
            subset: destination.subset.clone().filter(|s| !s.is_empty()),
            weight: weight.and_then(|w| u32::try_from(w).ok()).unwrap_or(0),
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
        }
    }
}

/// Several destinations share by weight; one alone gets everything (VS-054, VS-055).
fn weighed(mut destinations: Vec<Destination>) -> Vec<Destination> {
    if let [only] = destinations.as_mut_slice() {
        only.weight = 1;
    }
    destinations
}
