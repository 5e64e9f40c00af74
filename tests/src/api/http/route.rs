//! What a path means.

use super::super::resources::Resource;
use super::super::status::Status;

/// The target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Resources and their subresources.
    Object(Target),
    /// Everything that describes the server: discovery, schema, version, health. Path elements.
    Description(Vec<String>),
}

/// An object, or all of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The resource.
    pub resource: &'static Resource,
    /// The namespace; empty when there is none in the path.
    pub namespace: String,
    /// The object's name; empty for the whole collection.
    pub name: String,
    /// The subresource; empty for the object itself.
    pub subresource: String,
}

/// Reads a path.
///
/// # Errors
///
/// When there is nothing at the path.
pub fn parse(path: &str) -> Result<Route, Status> {
    let decoded = |part: &str| {
        percent_encoding::percent_decode_str(part)
            .decode_utf8_lossy()
            .into_owned()
    };
    let parts: Vec<String> = path
        .split('/')
        .filter(|part| !part.is_empty())
        .map(decoded)
        .collect();
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Route::Description(parts)),
    };
    let (namespace, rest) = match rest {
        // A namespace is an object itself, and a prefix of what is in it.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return Err(Status::no_such_path()),
    };
    let resource = Resource::find(group, version, plural).ok_or_else(Status::no_such_path)?;
    let has_namespace = !namespace.is_empty();
    if has_namespace != resource.namespaced && (has_namespace || !name.is_empty()) {
        return Err(Status::no_such_path());
    }
    Ok(Route::Object(Target {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let table = [
            ("/api/v1/pods", Some(("pods", "", "", ""))),
            ("/api/v1/namespaces", Some(("namespaces", "", "", ""))),
            ("/api/v1/namespaces/a", Some(("namespaces", "", "a", ""))),
            (
                "/api/v1/namespaces/a/status",
                Some(("namespaces", "", "a", "status")),
            ),
            ("/api/v1/namespaces/a/pods", Some(("pods", "a", "", ""))),
            (
                "/api/v1/namespaces/a/pods/x/status",
                Some(("pods", "a", "x", "status")),
            ),
            (
                "/apis/apps/v1/namespaces/a/deployments/x",
                Some(("deployments", "a", "x", "")),
            ),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                Some(("clusterroles", "", "system:node", "")),
            ),
            ("/api/v1/pods/x", None),
            ("/api/v1/namespaces/a/nodes/x", None),
            ("/api/v2/pods", None),
            ("/apis/apps/v1/pods", None),
            ("/api/v1/namespaces/a/pods/x/status/y", None),
        ];
        for (path, expected) in table {
            let found = match parse(path) {
                Ok(Route::Object(t)) => {
                    Some((t.resource.plural, t.namespace, t.name, t.subresource))
                }
                _ => None,
            };
            let expected =
                expected.map(|(p, a, b, c)| (p, a.to_owned(), b.to_owned(), c.to_owned()));
            assert_eq!(found, expected, "{path}");
        }
        assert!(matches!(parse("/apis/apps/v1"), Ok(Route::Description(_))));
    }
}
