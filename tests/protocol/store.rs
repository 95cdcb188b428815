//! What the model assumes of a store: a manifest is put only where none of its number is; what was put is listed
//! and read at once; everything has the time of the store's own clock. Of a request nothing is certain but that
//! (DESIGN.md, "One commit for every store").

/// How many objects and pins of an image there are at most at the same time.
pub const ITEMS: usize = 6;

/// An object, or a pin, of an image: its index. One that nobody and nothing names any more is as good as new.
pub type Item = u8;
/// A set of items.
pub type Items = u8;
/// A commit, by an id that it shares with none that anything still depends on.
pub type Id = u8;
/// A set of commits.
pub type Ids = u16;

/// What a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Manifest {
    pub sequence: u8,
    pub id: Id,
    pub ancestors: Ids,
    pub snapshots: Items,
    /// By item: the sequence of the manifest that condemned it, 0 for none.
    pub condemned: [u8; ITEMS],
    /// Of items condemned by manifests up to this one some are named no more.
    pub swept: u8,
    /// Image 0: by pin, which belongs to image 1, the object that it keeps, and 1; 0 for none.
    pub pins: [u8; ITEMS],
    /// Image 1: the pin, and the object of image 0 that it is based on.
    pub base: Option<(Item, Item)>,
    /// A plan that is pending, and the snapshot that it keeps; `Item::MAX` for none.
    pub plan: Option<Item>,
}

impl Manifest {
    pub fn set(&self) -> Ids {
        self.ancestors | 1 << self.id
    }

    /// What image 0 keeps for image 1.
    pub fn pinned(&self) -> Items {
        self.pins.iter().filter(|pin| **pin > 0).fold(0, |items, pin| items | 1 << (pin - 1))
    }

    pub fn all_condemned(&self) -> Items {
        (0..ITEMS).filter(|item| self.condemned[*item] > 0).fold(0, |items, item| items | 1 << item)
    }

    /// Image 0: the pins that it has.
    pub fn pin_set(&self) -> Items {
        let pins = (0..ITEMS).filter(|pin| self.pins[*pin] > 0);
        pins.fold(0, |items, pin| items | 1 << pin)
    }

    /// Image 1: the pin that it depends on.
    pub fn base_pin(&self) -> Items {
        self.base.map_or(0, |(pin, _)| 1 << pin)
    }

    /// The snapshot that its plan keeps.
    pub fn planned_on(&self) -> Items {
        self.plan.filter(|parent| *parent < Item::MAX).map_or(0, |parent| 1 << parent)
    }

    /// Items of the image that it names, whatever for.
    pub fn named(&self) -> Items {
        let kept = self.pinned() | self.base_pin() | self.planned_on();
        self.snapshots | self.all_condemned() | kept
    }

    pub fn condemn(&mut self, item: Item) {
        let condemned = &mut self.condemned[item as usize];
        *condemned = if *condemned > 0 { *condemned } else { self.sequence };
    }
}

/// What is asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    Put {
        image: u8,
        manifest: Manifest,
    },
    Upload {
        image: u8,
        item: Item,
        /// Its name begins as that of the plan: a worker made it.
        is_part: bool,
    },
    Mark {
        host: u8,
        image: u8,
        sequence: u8,
    },
    Delete {
        image: u8,
        item: Item,
    },
    DeleteManifest {
        image: u8,
        sequence: u8,
    },
    /// A mistake: deletes all manifests, so that what is put next is the first one.
    DeleteAll {
        image: u8,
        none: Manifest,
    },
}

/// What the sender of a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    Done,
    Exists,
    Unknown,
}

/// A day: the grace period of what is older is over.
pub const DAY: u8 = 1;
/// A marker that is so old holds nothing back.
pub const MARKER: u8 = 2;

/// An image in the store. Ages are in days, `MARKER` standing for any that is more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Folder {
    /// By number, with their ages.
    pub manifests: Vec<(Manifest, u8)>,
    pub data: Items,
    /// Which of them are parts of the plan.
    pub parts: Items,
    /// How old each of `data` is.
    pub ages: [u8; ITEMS],
}

impl Folder {
    pub fn ruling(&self) -> &Manifest {
        &self.manifests.last().unwrap().0
    }

    /// Age of a manifest; of the next one if it is gone, which is younger.
    pub fn age_of(&self, sequence: u8) -> u8 {
        self.manifests.iter().find(|(m, _)| m.sequence >= sequence).map_or(0, |(_, age)| *age)
    }
}

/// The store, and what is on its way there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Store {
    pub images: [Folder; 2],
    /// By host: image, sequence, age.
    pub markers: Vec<Option<(u8, u8, u8)>>,
    /// Whose senders wait for no answer any more.
    pub late: Vec<Request>,
}

impl Store {
    pub fn apply(&mut self, request: Request) -> Answer {
        match request {
            Request::Put { image, manifest } => {
                let manifests = &mut self.images[image as usize].manifests;
                match manifests.binary_search_by_key(&manifest.sequence, |(m, _)| m.sequence) {
                    Ok(_) => return Answer::Exists,
                    Err(at) => manifests.insert(at, (manifest, 0)),
                }
            }
            Request::Upload { image, item, is_part } => {
                let folder = &mut self.images[image as usize];
                folder.data |= 1 << item;
                folder.parts |= u8::from(is_part) << item;
                folder.ages[item as usize] = 0;
            }
            Request::Mark { host, image, sequence } => {
                self.markers[host as usize] = Some((image, sequence, 0));
            }
            Request::Delete { image, item } => {
                let folder = &mut self.images[image as usize];
                folder.data &= !(1 << item);
                folder.parts &= !(1 << item);
                folder.ages[item as usize] = 0;
            }
            Request::DeleteManifest { image, sequence } => {
                let manifests = &mut self.images[image as usize].manifests;
                manifests.retain(|(manifest, _)| manifest.sequence != sequence);
            }
            Request::DeleteAll { image, none } => {
                self.images[image as usize].manifests = vec![(none, 0)];
            }
        }
        Answer::Done
    }

    /// It lands at any time, or never.
    pub fn delay(&mut self, request: Request) {
        self.late.push(request);
        self.late.sort();
    }

    pub fn pass_a_day(&mut self) {
        let older = |age: &mut u8| *age = (*age + 1).min(MARKER);
        for folder in &mut self.images {
            folder.manifests.iter_mut().for_each(|(_, age)| older(age));
            let is_there = |item: &usize| folder.data & 1 << item != 0;
            (0..ITEMS).filter(is_there).for_each(|item| older(&mut folder.ages[item]));
        }
        self.markers.iter_mut().flatten().for_each(|(_, _, age)| older(age));
    }
}
