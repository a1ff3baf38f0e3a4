//! The guard before routes: who has no key, or one that is not good for it, does not come in.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;

use super::error::ApiError;
use super::middleware::Peer;
use crate::access::{Access, Denied, Scope};
use crate::app::App;

/// Where a key may stand besides `authorization`.
pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What is asked of whoever comes to a route.
#[derive(Clone)]
pub(super) struct Guard {
    access: Arc<Access>,
    /// What the key must be good for; any key will do without it.
    scope: Option<Scope>,
}

/// Lets only those come to `routes` whose key is good for `scope`, or who have any key where that is `None`. Where no keys
/// are configured everybody may, but only programs on the same machine may administer.
pub(super) fn guarded(
    routes: OpenApiRouter<Arc<App>>,
    access: &Arc<Access>,
    scope: impl Into<Option<Scope>>,
) -> OpenApiRouter<Arc<App>> {
    routes.route_layer(from_fn_with_state(Guard { access: Arc::clone(access), scope: scope.into() }, guard))
}

async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.admit(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

impl Guard {
    fn admit(&self, request: &Request) -> Result<(), ApiError> {
        let Self { access, scope } = self;
        if !access.is_open() {
            let name = access.check(secret(request.headers())?, *scope)?;
            tracing::Span::current().record("key", name);
            return Ok(());
        }
        if *scope == Some(Scope::Admin) && !is_local(request) {
            return Err(ApiError::forbidden(
                "without keys in the configuration, models are changed from the server's own machine only",
            ));
        }
        Ok(())
    }
}

/// The key that a request brings.
fn secret(headers: &HeaderMap) -> Result<Option<&str>, Denied<'static>> {
    let word =
        |name: HeaderName| headers.get(name).map(|value| value.to_str().map_err(|_| Denied::Unknown)).transpose();
    if let Some(key) = word(X_API_KEY)? {
        return Ok(Some(key));
    }
    let Some(credentials) = word(AUTHORIZATION)? else { return Ok(None) };
    match credentials.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(key.trim_start())),
        _ => Err(Denied::Unknown),
    }
}

/// Whether a request comes from a program on this machine. A proxy here speaks for others and says so, and a browser here runs
/// the pages of others: neither counts as local.
fn is_local(request: &Request) -> bool {
    let headers = request.headers();
    let from_here = request.extensions().get::<Peer>().is_some_and(|Peer(peer)| peer.ip().to_canonical().is_loopback());
    let for_others = [FORWARDED, X_FORWARDED_FOR].iter().any(|header| headers.contains_key(header));
    // A page of elsewhere may give its own name this machine's address: its own name is what the browser sends then.
    let names = [headers.get(ORIGIN), headers.get(HOST).filter(|_| headers.contains_key(ORIGIN))];
    let by_a_page_of_elsewhere =
        names.into_iter().flatten().any(|name| !name.to_str().ok().is_some_and(names_this_machine));
    from_here && !for_others && !by_a_page_of_elsewhere
}

/// Whether an origin or authority is this machine's, as seen from itself.
fn names_this_machine(name: &str) -> bool {
    let Ok(uri) = name.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::Body;
    use axum::http::HeaderValue;

    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
        };
        list.iter().map(header).collect()
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        for (list, expected) in [
            (&[("authorization", "Bearer k")][..], Ok(Some("k"))),
            (&[("authorization", "bearer  k")], Ok(Some("k"))),
            (&[("x-api-key", "k")], Ok(Some("k"))),
            (&[("x-api-key", "k"), ("authorization", "Basic eA==")], Ok(Some("k"))),
            (&[("authorization", "Basic eA==")], Err(Denied::Unknown)),
            (&[("authorization", "k")], Err(Denied::Unknown)),
            (&[], Ok(None)),
        ] {
            assert_eq!(secret(&headers(list)), expected, "{list:?}");
        }
    }

    #[test]
    fn only_programs_on_this_machine_are_local() {
        let local = |peer: &str, list: &[(&str, &str)]| {
            let mut request = Request::new(Body::empty());
            *request.headers_mut() = headers(list);
            request.extensions_mut().insert(Peer(peer.parse().unwrap()));
            is_local(&request)
        };
        for peer in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(local(peer, &[("host", "anything")]), "{peer}");
        }
        assert!(!local("192.0.2.1:1", &[]));
        let here = |list: &[(&str, &str)]| local("127.0.0.1:1", list);
        assert!(here(&[("origin", "http://localhost:8080"), ("host", "localhost:8080")]), "the server's own page");
        assert!(here(&[("origin", "http://[::1]:8080"), ("host", "[::1]:8080")]));
        for list in [
            &[("x-forwarded-for", "203.0.113.7")][..],
            &[("forwarded", "for=203.0.113.7")],
            &[("origin", "https://example.com"), ("host", "localhost:8080")],
            &[("origin", "http://localhost.example.com"), ("host", "localhost:8080")],
            &[("origin", "null"), ("host", "localhost:8080")],
            &[("origin", "http://localhost:8080"), ("host", "example.com")],
        ] {
            assert!(!here(list), "{list:?}");
        }
        assert!(!is_local(&Request::new(Body::empty())), "nobody knows where it comes from");
    }
}
