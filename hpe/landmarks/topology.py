"""Sets of face points, MediaPipe's mesh of 468 and the 68 of 300-W, and which point is which."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Float, Int64

from hpe.core.errors import UserError


@dataclass(frozen=True)
class Topology:
    """Which point of a face is which.

    Attributes:
        name: in tables and models.
        count: number of points.
        six: nose tip, chin, outer corner of the eye at the picture's left, at its right, corner of the mouth
            at its left, at its right (of a frontal face).
        origin: the point that the seed puts at the origin (nose tip).
        scale: the two points whose distance the seed uses as unit.
        pairs: points that a mirror swaps; the others stay.
    """

    name: str
    count: int
    six: tuple[int, int, int, int, int, int]
    origin: int
    scale: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]

    @cached_property
    def mirror(self) -> Int64[np.ndarray, " points"]:
        """``points[mirror]`` of the mirrored picture's points are in the usual order."""
        order = np.arange(self.count)
        for one, other in self.pairs:
            order[one], order[other] = other, one
        return order

    def mirrored(self, points: Float[np.ndarray, "faces points 3"]) -> Float[np.ndarray, "faces points 3"]:
        """The points of the mirrored faces (x negated: mirrored at the column 0)."""
        return points[:, self.mirror] * (-1.0, 1.0, 1.0)


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    numbers = [int(word) for word in text.split()]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


# Nearest neighbours of the mirrored mean of 1,843 frontalised meshes of AFLW2000. 28 points in the middle are their own
# mirror images. tests/landmarks/test_landmarks.py computes the pairs again from the real points.
_MESH_PAIRS: Final = _pairs("""
3 248 7 249 20 250 21 251 22 252 23 253 24 254 25 255 26 256 27 257 28 258 29 259 30 260 31 261 32 262 33
263 34 264 35 265 36 266 37 267 38 268 39 269 40 270 41 271 42 272 43 273 44 274 45 275 46 276 47 277 48
278 49 279 50 280 51 281 52 282 53 283 54 284 55 285 56 286 57 287 58 288 59 289 60 290 61 291 62 292 63
293 64 294 65 295 66 296 67 297 68 298 69 299 70 300 71 301 72 302 73 303 74 304 75 305 76 306 77 307 78
308 79 309 80 310 81 311 82 312 83 313 84 314 85 315 86 316 87 317 88 318 89 319 90 320 91 321 92 322 93
323 95 324 96 325 97 326 98 327 99 328 100 329 101 330 102 331 103 332 104 333 105 334 106 335 107 336 108
337 109 338 110 339 111 340 112 341 113 342 114 343 115 344 116 345 117 346 118 347 119 348 120 349 121
350 122 351 123 352 124 353 125 354 126 355 127 356 128 357 129 358 130 359 131 360 132 361 133 362 134
363 135 364 136 365 137 366 138 367 139 368 140 369 141 370 142 371 143 372 144 373 145 374 146 375 147
376 148 377 149 378 150 379 153 380 154 381 155 382 156 383 157 384 158 385 159 386 160 387 161 388 162
389 163 390 165 391 166 392 167 393 169 394 170 395 171 396 172 397 173 398 174 399 176 400 177 401 178
402 179 403 180 404 181 405 182 406 183 407 184 408 185 409 186 410 187 411 188 412 189 413 190 414 191
415 192 416 193 417 194 418 196 419 198 420 201 421 202 422 203 423 204 424 205 425 206 426 207 427 208
428 209 429 210 430 211 431 212 432 213 433 214 434 215 435 216 436 217 437 218 438 219 439 220 440 221
441 222 442 223 443 224 444 225 445 226 446 227 447 228 448 229 449 230 450 231 451 232 452 233 453 234
454 235 455 236 456 237 457 238 458 239 459 240 460 241 461 242 462 243 463 244 464 245 465 246 466 247
467
""")
_68_PAIRS: Final = _pairs("""
0 16 1 15 2 14 3 13 4 12 5 11 6 10 7 9 17 26 18 25 19 24 20 23 21 22 31 35 32 34 36 45 37 44 38 43 39 42 41 46
40 47 48 54 49 53 50 52 60 64 61 63 59 55 58 56 67 65
""")

MESH468: Final = Topology("mesh468", 468, (4, 152, 33, 263, 61, 291), 4, (10, 152), _MESH_PAIRS)
POINTS68: Final = Topology("points68", 68, (30, 8, 36, 45, 48, 54), 30, (27, 8), _68_PAIRS)
TOPOLOGIES: Final = {topology.name: topology for topology in (MESH468, POINTS68)}
_ALL: Final = {topology.count: topology for topology in TOPOLOGIES.values()}


def topology_of(count: int) -> Topology:
    """The topology with this number of points.

    Raises:
        UserError: there is none.
    """
    if count not in _ALL:
        raise UserError(f"faces of {count} points: expected {' or '.join(map(str, _ALL))} points per face")
    return _ALL[count]
