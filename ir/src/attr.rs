//! Attributes: the values in braces after an op's operands, in a form that prints and parses without knowing the op.

use hadal_types::{DType, Dim, Sym};
use std::collections::BTreeSet;
use std::fmt;

/// A real number that can be compared and hashed by its bits, so that ops can be e-graph nodes.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Real {}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// One attribute value.
#[derive(Clone, PartialEq, Debug)]
pub enum Attr {
    /// An integer or a symbolic size: `5`, `P+T`.
    Dim(Dim),
    /// A real number: `1e-6`, `-inf`.
    Real(f64),
    /// A quoted string.
    Str(String),
    /// A bare word: `true`, `sum`, `bf16`.
    Word(String),
    /// A bracketed list.
    List(Vec<Attr>),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Dim(d) => write!(f, "{d}"),
            Attr::Real(x) => write!(f, "{x:?}"),
            Attr::Str(s) => write!(f, "{s:?}"),
            Attr::Word(w) => f.write_str(w),
            Attr::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

impl From<i64> for Attr {
    fn from(n: i64) -> Self {
        Attr::Dim(n.into())
    }
}
impl From<usize> for Attr {
    fn from(n: usize) -> Self {
        Attr::Dim(n.into())
    }
}
impl From<&Dim> for Attr {
    fn from(d: &Dim) -> Self {
        Attr::Dim(d.clone())
    }
}
impl From<Real> for Attr {
    fn from(x: Real) -> Self {
        Attr::Real(x.0)
    }
}
impl From<bool> for Attr {
    fn from(b: bool) -> Self {
        Attr::Word(b.to_string())
    }
}
impl From<DType> for Attr {
    fn from(d: DType) -> Self {
        Attr::Word(d.name().into())
    }
}
impl From<&str> for Attr {
    fn from(s: &str) -> Self {
        Attr::Str(s.into())
    }
}
impl Attr {
    /// Adds the symbols of the sizes in it to `out`.
    pub fn symbols(&self, out: &mut BTreeSet<Sym>) {
        match self {
            Attr::Dim(d) => out.extend(d.terms().iter().map(|(s, _)| *s)),
            Attr::List(items) => items.iter().for_each(|i| i.symbols(out)),
            Attr::Real(_) | Attr::Str(_) | Attr::Word(_) => {}
        }
    }

    /// A list of things that are attributes.
    pub fn list<T: Into<Attr>>(items: impl IntoIterator<Item = T>) -> Self {
        Attr::List(items.into_iter().map(Into::into).collect())
    }
}

/// An op's attributes by name, taken one by one while the op is built; what is left over is an error.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Attrs(pub Vec<(String, Attr)>);

/// Why attributes do not make an op.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum AttrError {
    /// A needed attribute is absent.
    #[error("attribute `{0}` is missing")]
    Missing(&'static str),
    /// An attribute has the wrong form.
    #[error("attribute `{name}` should be {expected}, found `{found}`")]
    Wrong {
        /// The attribute.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
        /// Its text.
        found: String,
    },
    /// An attribute that the op does not have.
    #[error("unknown attribute `{0}`")]
    Unknown(String),
}

impl Attrs {
    /// Takes `name` out, if present.
    pub fn take(&mut self, name: &str) -> Option<Attr> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(at).1)
    }

    /// Takes `name` out and converts it.
    pub fn get<T: FromAttr>(&mut self, name: &'static str) -> Result<T, AttrError> {
        let attr = self.take(name).ok_or(AttrError::Missing(name))?;
        T::from_attr(&attr).ok_or_else(|| AttrError::Wrong { name, expected: T::EXPECTED, found: attr.to_string() })
    }

    /// Takes `name` out and converts it, or gives `default` where it is absent.
    pub fn get_or<T: FromAttr>(&mut self, name: &'static str, default: T) -> Result<T, AttrError> {
        if self.0.iter().any(|(n, _)| n == name) { self.get(name) } else { Ok(default) }
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<(), AttrError> {
        match self.0.into_iter().next() {
            Some((name, _)) => Err(AttrError::Unknown(name)),
            None => Ok(()),
        }
    }
}

/// Types an attribute can be read as.
pub trait FromAttr: Sized {
    /// What the text should have been, for errors.
    const EXPECTED: &'static str;
    /// The value, where the attribute has the right form.
    fn from_attr(attr: &Attr) -> Option<Self>;
}

impl FromAttr for Dim {
    const EXPECTED: &'static str = "a size";
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Dim(d) => Some(d.clone()),
            Attr::Word(w) => Sym::new(w).map(Dim::from),
            _ => None,
        }
    }
}
impl FromAttr for i64 {
    const EXPECTED: &'static str = "an integer";
    fn from_attr(attr: &Attr) -> Option<Self> {
        Dim::from_attr(attr)?.as_const()
    }
}
impl FromAttr for usize {
    const EXPECTED: &'static str = "a non-negative integer";
    fn from_attr(attr: &Attr) -> Option<Self> {
        usize::try_from(i64::from_attr(attr)?).ok()
    }
}
impl FromAttr for Real {
    const EXPECTED: &'static str = "a real number";
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Real(x) => Some(Real(*x)),
            Attr::Dim(d) => d.as_const().map(|n| Real(n as f64)),
            _ => None,
        }
    }
}
impl FromAttr for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Word(w) => w.parse().ok(),
            _ => None,
        }
    }
}
impl FromAttr for DType {
    const EXPECTED: &'static str = "an element format";
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Word(w) => w.parse().ok(),
            _ => None,
        }
    }
}
impl FromAttr for String {
    const EXPECTED: &'static str = "a string";
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Str(s) => Some(s.clone()),
            _ => None,
        }
    }
}
impl<T: FromAttr> FromAttr for Vec<T> {
    const EXPECTED: &'static str = "a list";
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::List(items) => items.iter().map(T::from_attr).collect(),
            _ => None,
        }
    }
}
