%%% Binaries of callers that the library keeps without copying them: in a VM of its own, which lives
%%% through it or does not.
-module(binary_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([a_node_id_that_is_part_of_a_growing_message_is_read_where_it_is/1]).
-export([send_grown/4]).

-define(POOL, macula_gateway_mesh).
-define(KIB, 1_024).
%% What has grown to this by thirds has as much room behind it, and so more than the 512 KiB for
%% which the VM's allocator gets a piece of memory from the system. Without the room it has less.
-define(SIZES, lists:seq(300 * ?KIB, 500 * ?KIB, 20 * ?KIB)).
%% What is smaller is copied when it is cut out of another binary.
-define(NODE_ID_BYTES, 100).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [a_node_id_that_is_part_of_a_growing_message_is_read_where_it_is].

a_node_id_that_is_part_of_a_growing_message_is_read_where_it_is(_Config) ->
    %% A binary that was appended to loses the room behind it when a native function looks at it,
    %% and may be moved then, with the node id that is part of it. Here it is moved, and what was
    %% freed goes back to the system: whoever reads the former place ends the VM. On OTP 25, 27 and
    %% 29 it moves before the function has any pointer, in whatever order that looks; so this has
    %% never failed.
    Peer = mesh_peer:start(),
    mesh_vm:with(#{env => [{"ERL_AFLAGS", "+MMmcs 0 +MBrsbcmt 1"}]}, fun(Vm) ->
        ok = mesh_vm:call(Vm, start_pool, [#{linger_ms => 100}]),
        [
            ok = mesh_vm:call(Vm, ?MODULE, send_grown, [Way, Index, Size, mesh_peer:address(Peer)])
         || {Way, First} <- [{send_async, 1_000}, {send, 2_000}],
            {Index, Size} <- lists:enumerate(First, ?SIZES)
        ],
        Count = 2 * length(?SIZES),
        ?assertMatch(#{distinct := Count, corrupt := 0}, mesh_peer:wait(Peer, messages, Count)),
        {ok, Connections} = mesh_vm:call(Vm, list_connections, [?POOL]),
        Indexes = [Index || {<<Index:64, _/binary>>, _} <- Connections],
        Expected = [First + N || First <- [1_000, 2_000], N <- lists:seq(0, Count div 2 - 1)],
        ?assertEqual(Expected, lists:sort(Indexes))
    end),
    mesh_peer:stop(Peer).

%% In the other VM: sends a frame that has grown to the node that its index and what follows name.
send_grown(Way, Index, Size, Address) ->
    Message = grow(mesh_peer:frame(Index, Size), Size div 3, <<>>),
    NodeId = binary:part(Message, 8, ?NODE_ID_BYTES),
    case Way of
        send_async -> ?POOL:send_async(?POOL, NodeId, Address, Message);
        send -> ?POOL:send(?POOL, NodeId, Address, Message, 10_000)
    end.

grow(Rest, Third, Grown) when byte_size(Rest) < Third ->
    <<Grown/binary, Rest/binary>>;
grow(Whole, Third, Grown) ->
    <<Piece:Third/binary, Rest/binary>> = Whole,
    grow(Rest, Third, <<Grown/binary, Piece/binary>>).
