"""Names of countries, continents and states, which contain the cities of other texts."""

_NAMES = """
africa, asia, europe, america, north america, south america, australia, antarctica, afghanistan, albania,
algeria, andorra, angola, argentina, armenia, austria, azerbaijan, bahrain, bangladesh, belarus, belgium,
belize, benin, bhutan, bolivia, bosnia, botswana, brazil, brunei, bulgaria, burundi, cambodia, cameroon,
canada, chad, chile, china, colombia, congo, costa rica, croatia, cuba, cyprus, czechia, czech republic,
denmark, ecuador, egypt, el salvador, england, eritrea, estonia, ethiopia, fiji, finland, france, gabon,
gambia, germany, ghana, greece, guatemala, guinea, guyana, haiti, honduras, hungary, iceland, india,
indonesia, iran, iraq, ireland, israel, italy, ivory coast, jamaica, japan, jordan, kazakhstan, kenya,
korea, kosovo, kuwait, kyrgyzstan, laos, latvia, lebanon, lesotho, liberia, libya, lithuania, luxembourg,
madagascar, malawi, malaysia, mali, malta, mauritius, mexico, moldova, monaco, mongolia, montenegro,
morocco, mozambique, myanmar, namibia, nepal, netherlands, holland, new zealand, nicaragua, niger, nigeria,
north korea, north macedonia, northern ireland, norway, oman, pakistan, palestine, panama, paraguay, peru,
philippines, poland, portugal, qatar, romania, russia, rwanda, saudi arabia, scotland, senegal, serbia,
singapore, slovakia, slovenia, somalia, south africa, south korea, south sudan, spain, sri lanka, sudan,
suriname, sweden, switzerland, syria, taiwan, tajikistan, tanzania, thailand, togo, tunisia, turkey,
turkmenistan, uganda, ukraine, uk, united kingdom, great britain, britain, us, usa, united states, uruguay,
uzbekistan, venezuela, vietnam, wales, yemen, zambia, zimbabwe, alabama, alaska, arizona, arkansas,
california, colorado, connecticut, delaware, florida, georgia, hawaii, idaho, illinois, indiana, iowa,
kansas, kentucky, louisiana, maine, maryland, massachusetts, michigan, minnesota, mississippi, missouri,
montana, nebraska, nevada, new hampshire, new jersey, new mexico, north carolina, north dakota, ohio,
oklahoma, oregon, pennsylvania, rhode island, south carolina, south dakota, tennessee, texas, utah, vermont,
virginia, washington, west virginia, wisconsin, wyoming, ontario, quebec, british columbia, alberta,
bavaria, saxony, hesse, catalonia, andalusia, tuscany, sicily, brittany, normandy, queensland,
victoria, tasmania, punjab, kerala, gujarat, bengal
"""
REGIONS = frozenset(name.strip() for name in _NAMES.replace("\n", " ").split(","))
"""Regions in lower case. A person may live in a city and in its region."""
