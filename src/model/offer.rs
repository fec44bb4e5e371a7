//! What a host offers to recording and running, as `slim doctor` tells it.

/// One thing that was tried on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// One word, stable: programs read it.
    pub name: &'static str,
    /// What was found.
    pub found: Result<String, Lack>,
}

/// Something a host does not offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What the kernel or the program said.
    pub why: String,
    /// What slim cannot do, or does less well, without it.
    pub costs: String,
    /// What the user can do about it.
    pub way_out: String,
}

impl Offer {
    /// The same, made in one place.
    pub fn new(name: &'static str, found: Result<String, Lack>) -> Self {
        Self { name, found }
    }

    /// True if it is there.
    pub fn ok(&self) -> bool {
        self.found.is_ok()
    }
}

impl Lack {
    /// Names what is missing, what that costs and the way out.
    pub fn new(why: impl ToString, costs: &str, way_out: &str) -> Self {
        Self { why: why.to_string(), costs: costs.to_owned(), way_out: way_out.to_owned() }
    }

    /// The same for a failed call: the error's causes are told too.
    pub fn of(error: &dyn std::error::Error, costs: &str, way_out: &str) -> Self {
        Self::new(super::chain(error), costs, way_out)
    }
}
